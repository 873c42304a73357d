"""Sources of screens: each module turns something into the canonical form."""

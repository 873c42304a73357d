"""The canonical screen: counts, design, labels, validation and splits."""

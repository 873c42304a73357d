"""The canonical screen: counts, design matrix, labels, validation and splits."""

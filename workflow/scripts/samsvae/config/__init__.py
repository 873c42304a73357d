"""The configuration: its schema, the catalogue of models, defaults and validation."""

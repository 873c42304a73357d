"""Gene sets, enrichment, latent factors and cell states."""

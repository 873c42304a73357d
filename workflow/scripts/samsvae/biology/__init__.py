"""Gene sets, enrichment and latent factors."""

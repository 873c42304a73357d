"""Gene sets, enrichment, latent factors and cell states."""

# values of the column perturbation in tables of cell states
ALL = "all"  # all perturbations together
OTHER = "other perturbations"  # those that a map does not name

# kinds of cells in the table of responder scores
NULL, PERTURBED = "without the perturbation", "perturbed"

BATCH_PVALUE, BATCH_VARIANCE = "batch_pvalue", "batch_variance"  # of a gene, in a screen's effects
INDEPENDENT_WITHIN = 0.05  # accuracy above chance of a basal state that counts as independent

"""How sure the scores are: intervals over runs, paired differences, verdicts."""

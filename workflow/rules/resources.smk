# Resources of jobs. Each attempt requests more than the previous one, so that a job that ran out of
# memory or time succeeds when retried; profiles/slurm sets the number of retries.


def growing(amount, per_input=0):
    """Return a resource function: the amount times the number of the attempt.

    For memory, `per_input` adds a multiple of the size of the job's input files, whose compressed
    sparse counts become dense.
    """
    if not per_input:
        return lambda wildcards, attempt: attempt * amount
    return lambda wildcards, input, attempt: attempt * (
        amount + int(per_input * input.size_mb)
    )

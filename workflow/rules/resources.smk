# What a job asks of a cluster. Each attempt gets more than the one before, so that a job that ran
# out of memory or time is not lost; see profiles/slurm for how often it is tried.


def growing(amount, per_input=0):
    """Ask for so much of a resource at the first attempt, twice as much at the second, and so on.

    Of memory, `per_input` adds so many times the size of the job's input files, whose counts are
    compressed and sparse and become dense.
    """
    if not per_input:
        return lambda wildcards, attempt: attempt * amount
    return lambda wildcards, input, attempt: attempt * (
        amount + int(per_input * input.size_mb)
    )

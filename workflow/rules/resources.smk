# Resources of jobs. Each attempt requests more than the previous one, so that a job that ran out of
# memory or time succeeds when retried; profiles/slurm sets the number of retries.


import os


def growing(amount, per_input=0):
    """Return a resource function: the amount times the number of the attempt.

    For memory, `per_input` adds a multiple of the size of the job's input files, whose compressed
    sparse counts become dense. The sizes are those of local files: `input.size_mb` starts an event
    loop for each job, which takes longer than all else in planning a large grid.
    """
    if not per_input:
        return lambda wildcards, attempt: attempt * amount

    def memory(wildcards, input, attempt):
        megabytes = sum(os.path.getsize(path) for path in input) / 2**20
        return attempt * (amount + int(per_input * megabytes))

    return memory

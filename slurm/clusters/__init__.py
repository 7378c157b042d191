"""The clusters that jobs run on: what each has, what a job asks of it, and what its controller says."""

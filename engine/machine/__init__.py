"""The machine and the job: device, CPU settings, processes and their communication."""

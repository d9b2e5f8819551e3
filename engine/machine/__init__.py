"""The machine and the job: devices, CPU settings, processes and what they tell each other."""

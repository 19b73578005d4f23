"""What is installed, what each host has, and what can talk to what, before the job.

`host` collects facts on every rank, `network`, `disk` and `engines` try things out together, `judge` turns
facts into findings without looking at anything: so that it can be tested.
"""

"""What a job that hangs, or whose ranks call different collective operations, says about itself.

Each rank has a `watchdog.Watchdog`: a thread that sleeps, tells the others through the store what its rank
is doing when one of them asks, and asks itself when its own rank waits for too long.
"""

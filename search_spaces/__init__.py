"""Search spaces: one file a sweep, run by `energymt sweep NAME`."""

"""The energy pool: actors that serve a quality estimator's score and its gradient, as if it were a local function."""

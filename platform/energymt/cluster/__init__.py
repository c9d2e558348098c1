"""Ray: how it is started, whether a run fits, and how training runs inside it."""

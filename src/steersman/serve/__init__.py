"""VERSION -> DECISION: pure decisions, a data plane, an HTTP shell, and the processes that serve."""

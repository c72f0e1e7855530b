"""The model as layers of routed experts: load it, see into it, restrict it reversibly, cut it."""

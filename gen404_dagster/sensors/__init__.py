"""When to look and what to launch: a pure decision (`decision`) in a thin shell (`round_sensor`)."""

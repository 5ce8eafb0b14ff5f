"""The demo, the benchmark and the doctor."""

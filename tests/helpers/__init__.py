"""What tests share: oracles, things made for tests, programs of other processes."""

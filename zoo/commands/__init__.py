"""Commands that answer without importing torch. Each module has `main(args) -> exit status`."""

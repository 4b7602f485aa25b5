"""Compiles training for one or several devices, with several processes, and with split or copied tables."""

"""Where training runs: compiled for one or several devices, over processes, with tables split or whole."""

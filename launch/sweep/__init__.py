"""A sweep: one grid of autoencoders, denoisers and solvers, trained, timed and judged alike, and the best trade among them."""

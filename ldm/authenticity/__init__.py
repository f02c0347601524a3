"""Whether synthetic images are copies of real ones, and what a set and its model betray of the people in it."""

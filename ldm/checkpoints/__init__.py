"""States of trainings, and what is read from them."""

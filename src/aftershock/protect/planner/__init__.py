"""What to buy: candidates, their costs and what they remove, the best set within a budget, and proof of it."""

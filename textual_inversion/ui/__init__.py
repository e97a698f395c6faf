"""The pages: forms, actions, what is drawn. Knows hosts by their port only."""

"""The pages: forms, what is drawn, and the addresses that the pages' scripts read; the work is the engine's."""

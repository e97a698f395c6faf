"""The pages: forms, HTML, and the routes that the pages' scripts read. The engine does the work."""

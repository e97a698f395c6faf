"""What a click does, without a page: the engine over a host, the job, the actions; it owns the port that hosts implement."""

"""Words to jobs: sites, what is frozen, what is described, pipelines."""

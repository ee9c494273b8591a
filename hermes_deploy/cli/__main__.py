"""`python -m hermes_deploy.cli` is the `hermes-deploy` command."""

from hermes_deploy.cli import main

main()

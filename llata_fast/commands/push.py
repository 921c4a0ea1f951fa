"""Upload a finished run to the Hugging Face hub, with a model card that shows its scores beside the baselines'."""

import argparse


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("repo", help="repository on the hub: organisation/name")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--licence", default="apache-2.0", help="licence of the weights, by its name on the hub")


def main(options: argparse.Namespace):
    from ..adapters.hub import push

    url = push(options.run, options.repo, private=options.private, licence=options.licence)
    print(f"{options.run} is at {url}")

"""python -m anomalysd_edge.cli: the command `sd-edge` where its script is not on the path."""

from anomalysd_edge.cli.main import main

if __name__ == "__main__":
    main()

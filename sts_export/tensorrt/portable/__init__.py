"""Graphs, inputs and command lines for engines that are built on another machine."""

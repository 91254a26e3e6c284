#!/bin/sh
# What Doxygen gets to see of a page: its name is that of its file, without the folders.
name=$(basename "$1" .md)
case $name in
  index) label= ;;
  *) label=" {#$name}" ;;
esac
exec sed -E -f docs/doxygen/pages.sed -e "1s/\$/$label/" "$1"

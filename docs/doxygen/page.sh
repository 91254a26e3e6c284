#!/bin/sh
# Converts a page for Doxygen. The name of the page is its file name without folders.
name=$(basename "$1" .md)
case $name in
  index) label= ;;
  *) label=" {#$name}" ;;
esac
awk -v page="$name" '
  /^```/ { is_code = !is_code }
  # Doxygen shows the tags of code in a title, and in a heading that has a name.
  !is_code && /^#/ { gsub(/`/, "") }
  # A heading has the name that GitHub gives it, behind that of the page; links within the page use it.
  !is_code && /^##+ / {
    heading = tolower($0)
    sub(/^#+ /, "", heading)
    gsub(/[^a-z0-9 _-]/, "", heading)
    gsub(/ /, "-", heading)
    $0 = $0 " {#" page "-" heading "}"
  }
  !is_code { gsub(/\]\(#/, "](#" page "-") }
  { print }' "$1" | sed -E -f docs/doxygen/pages.sed -e "1s/\$/$label/"

# What Doxygen gets to see of a page.

# Doxygen wants inline code on one line: a line with an odd number of backticks takes the next one in.
/^ *```/!{
  :join
  /^[^`]*`([^`]*`[^`]*`)*[^`]*$/{
    $!{
      N
      s/\n/ /
      b join
    }
  }
}

# A link to a file that is not on the site becomes the name of the file.
s/(^|[^!])\[`?([^]`]+)`?\]\(\.\.\/\2\)/\1`\2`/g
s/(^|[^!])\[([^]]+)\]\(\.\.\/([^)]+)\)/\1\2 (`\3`)/g

# An image is found by its name in the folders of IMAGE_PATH.
s/(!\[[^]]*\]\()[^)]*\/([^)\/]+\))/\1\2/g

# A link to a heading of another page.
s/\]\(([a-z_]+)\.md#([a-z0-9_-]+)\)/](#\1-\2)/g

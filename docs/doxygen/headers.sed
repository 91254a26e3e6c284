# Converts a header for Doxygen.

# Removes the inline namespace with the version from every name.
s/namespace attend::inline ATTEND_VERSION_NAMESPACE/namespace attend/

# The private members of a class, and the struct View that a bind() returns. Doxygen would link them and show nothing.
/^ private:$/,/^\};$/{
  /^\};$/!s/.*//
}
/^  struct View /,/^  \};$/s/.*//

# The macros that version.h makes the name of the namespace with.
s/^#define ATTEND_(JOIN|MAKE)_VERSION.*//

# TORCH_ARG(T, name) = default: the setter, which returns the options. The comment above it names the default.
/^struct [A-Za-z0-9]+Options /{
  h
  x
  s/^struct ([A-Za-z0-9]+).*/\1/
  x
}
/^ *TORCH_ARG\(/{
  G
  s/^( *)TORCH_ARG\((.+), ([a-z_0-9]+)\).*;\n(.*)/\1\4\& \3(\2 value);/
}

# TORCH_MODULE(Name): becomes a class with the documentation of NameImpl.
s/^TORCH_MODULE\((.+)\);/\/** A handle of attend::\1Impl, which has the member functions: call them by `->`. @copydetails attend::\1Impl *\/\nclass \1 : public torch::nn::ModuleHolder<\1Impl> {};/

# Removes a macro of torch for AnyModule, which adds no function to call.
/FORWARD_HAS_DEFAULT_ARGS\(/,/\)\}\)$/d

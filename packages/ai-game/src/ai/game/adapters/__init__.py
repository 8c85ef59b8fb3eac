"""Games of other libraries, by the rules of this one."""

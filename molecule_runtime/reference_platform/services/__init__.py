"""The platform's rules, one file for each subject; every fact has one function that writes it."""

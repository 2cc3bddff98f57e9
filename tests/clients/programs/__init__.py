"""Small programs that the tests run as processes of their own, each as its user would write it."""

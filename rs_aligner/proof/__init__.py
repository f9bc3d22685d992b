"""Whether selection helps: figures against chance, in closed form, and a judge that decides nothing."""

-- Number 2 belongs to URL groups; until they are here it does nothing.
SELECT 1;

-- One row here and one on node b, by pgbench.  Each client has its own slice
-- of the rows.
\set slice :rows / :clients
\set id :client_id * :slice + random(1, :slice)
BEGIN;
UPDATE account SET balance = balance + 1 WHERE id = :id;
SELECT tpc_amqp.call('b', 'bump', jsonb_build_object('id', :id));
COMMIT;

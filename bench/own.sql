-- A local transaction that has queues of its own declared, and has nothing sent
-- to them: what the queues alone cost, by pgbench.
\set slice :rows / :clients
\set id :client_id * :slice + random(1, :slice)
BEGIN;
UPDATE account SET balance = balance + 1 WHERE id = :id;
SELECT tpc_amqp.own_queues('nobody');
COMMIT;

# Creates the data directory if it does not exist, creates the roles with the passwords from the
# environment, and then runs the server in the place of this script.
set -eu
umask 077
export PGDATA=/data/postgres PGHOST=/tmp PGUSER=postgres
if [ ! -s "$PGDATA/PG_VERSION" ] || [ -e "$PGDATA.partial" ]; then
  # An interrupted start left an incomplete directory.
  rm -rf "$PGDATA"
  touch "$PGDATA.partial"
  printf %s "$POSTGRES_PASSWORD" > /tmp/password
  initdb --username=postgres --pwfile=/tmp/password --auth-local=peer --auth-host=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8
  rm /tmp/password
  rm "$PGDATA.partial"
fi
# Until the roles exist the server listens on a local socket only.
pg_ctl --wait --log=/tmp/bootstrap.log --options="-c listen_addresses= -c unix_socket_directories=/tmp" start > /tmp/start.log ||
  { cat /tmp/bootstrap.log; exit 1; }
psql --no-psqlrc --quiet --dbname=postgres -v auth_password="$AUTH_PASSWORD" \
  -v scheduler_password="$SCHEDULER_PASSWORD" -v webhooks_password="$WEBHOOKS_PASSWORD" -f /scripts/postgres.sql
pg_ctl --wait --mode=fast stop > /tmp/stop.log
unset POSTGRES_PASSWORD AUTH_PASSWORD SCHEDULER_PASSWORD WEBHOOKS_PASSWORD
# Over the network only encrypted connections, of which every role needs its password.
printf '%s\n' 'local all postgres peer' 'hostssl all all all scram-sha-256' > /tmp/pg_hba.conf
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c hba_file=/tmp/pg_hba.conf \
  -c ssl=on -c ssl_cert_file=/etc/postgres-tls/tls.crt -c ssl_key_file=/etc/postgres-tls/tls.key \
  -c max_connections="$MAX_CONNECTIONS" -c logging_collector=off

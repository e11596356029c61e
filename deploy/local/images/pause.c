/* The process that holds a box's namespaces. It reaps orphaned processes, and exits on SIGTERM and
 * SIGINT. The kernel applies no default signal actions to PID 1, so it needs handlers. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signal) {
  (void)signal;
  _exit(0);
}

static void reap(int signal) {
  (void)signal;
  while (waitpid(-1, 0, WNOHANG) > 0) {
  }
}

int main(void) {
  struct sigaction action = {0};
  action.sa_handler = leave;
  if (sigaction(SIGTERM, &action, 0) || sigaction(SIGINT, &action, 0)) return 1;
  action.sa_handler = reap;
  action.sa_flags = SA_NOCLDSTOP;
  if (sigaction(SIGCHLD, &action, 0)) return 1;
  for (;;) pause();
}

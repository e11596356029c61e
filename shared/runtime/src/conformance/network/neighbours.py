# Sends a datagram to each of 300 addresses around the box's own, and prints how many neighbours the
# box has by then.
import ipaddress
import socket

own = int(ipaddress.ip_address(socket.gethostbyname(socket.gethostname())))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for offset in range(-150, 151):
    try:
        sender.sendto(b"x", (str(ipaddress.ip_address(own + offset)), 9))
    except OSError:
        pass
with open("/proc/net/arp") as table:
    print(len(table.readlines()) - 1)
